"""Several people in one picture, each in their place: inspired by MagicID (arXiv 2408.09248, whose third version is
named FPGA). The paper publishes neither code nor formulas; all of this is a reconstruction.
"""
