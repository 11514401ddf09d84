"""What can be said of the CUDA kernels without a GPU: their resources and their machine code.

    python -m tests.static.budgets --write     brings budgets.json up to the present build
    python -m tests.static.budgets             compares, as the tests do

`toolchain` finds the tools, `build` reads the built library, `machine_code` looks at instructions,
`families` says which family claims what, `occupancy` computes, `budgets` is the committed table.
"""
