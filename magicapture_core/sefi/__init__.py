"""SeFi-IDE, one photo is enough: an identity as a word that is another one at each noise level, for keys and values.

Re-implemented from the published description of "Beyond Inserting" (arXiv 2402.00631); there is no code of the authors.
"""
