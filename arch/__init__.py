"""The contracts: accelerator parameters, instruction set, integer semantics and file formats."""
