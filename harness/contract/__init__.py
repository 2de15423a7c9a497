"""The contract: what every method promises, whoever wrote it (design.md, "The method interface").

One function per promise, of a `Subject`. It returns what it found in a few words, raises `Broken` with what was found
and what to change, or `NotApplicable` with the reason. `harness check` reports them; tests/contract runs them over
every method that is installed. The list of all is in `promises`.
"""
