"""Steering inside vLLM: a `vllm.general_plugins` plugin and the request format it reads.

`spec`    what a request may ask for, checked at admission
`vectors` the vector files that requests name
`requests` the steered requests that are alive
`plan`    which token of a step gets which edit, on a CPU (`passes`: the arithmetic)
`device`  the same on a GPU, in buffers that captured graphs read (`kernel`: the arithmetic)
`plugin`  the few places where vLLM is patched (`runners`: those of a step)
`verify`  is all of it right here?
"""
