"""`harness export`: a finished run's weights for other programs, and for this one.

`safetensors` is our own file, which `harness eval --checkpoint` reads again; `timm` a folder that `timm.create_model`
loads as an encoder; `diffusers` a pipeline's folder that samples. What a method can be written as, its own module says:
`methods/<name>/export.py` with `to_timm(method, tap)` and `to_diffusers(method)`; either may be absent.
Before a folder is left behind it is loaded by the other library and its outputs are compared with the method's.
"""
