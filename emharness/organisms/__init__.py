"""Models: the base, and the organisms that are trained from it or published for it.

`weights`  get a base or a published organism as a local folder in hub format
`dataset`  narrow training data
`train`    LoRA fine-tuning, merged into a folder that vLLM loads
"""
