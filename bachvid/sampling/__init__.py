"""How noise becomes video: noise levels, solvers, guidance, and the loop that walks them."""
