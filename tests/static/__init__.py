"""What can be said of the CUDA kernels without a GPU: their resources and their machine code.

    make budgets                               brings budgets.json and the catalogue up to date
    python -m tests.static.budgets             compares, as the tests do

`toolchain` finds the tools, `build` reads the built library, `machine_code` looks at instructions,
`families` says which family claims what, `occupancy` computes, `budgets` is the committed table.
"""
