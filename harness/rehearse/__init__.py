"""`harness rehearse`: what a cluster does to a run, done to a toy run of a method on this machine."""
