"""Steering inside vLLM: a `vllm.general_plugins` plugin and the request format it reads.

`spec`    what a request may ask for, checked at admission
`vectors` the vector files that requests name
`plan`    which token of a step gets which edit (pure arrays)
`plugin`  the few places where vLLM is patched
"""
