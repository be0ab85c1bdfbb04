"""Faces that are too small or broken get their person back by DDIM inversion, what is around them untouched: inspired
by MagicID's identity restoration (arXiv 2408.09248, whose third version is named FPGA). Its code is not public; all of
this is a reconstruction.
"""
