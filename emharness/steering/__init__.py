"""Steering inside vLLM: a `vllm.general_plugins` plugin and the request format it reads.

Folders in the order of the data; each imports only those above it.

`blocks`  where a model's decoder blocks are, in vLLM and in transformers
`request` what may be asked for, checked at admission, and what comes back
`step`    which token of an engine step gets which edit, and the arithmetic
`gpu`     the same in buffers that captured graphs read
`vllm`    the few places where vLLM is patched
`verify`  is all of it right here?
"""
