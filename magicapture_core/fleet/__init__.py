"""Many trainings on many machines: one file of jobs, Ray, and results in any path that fsspec knows.

What is finished is told by the results alone; Ray only carries the work.
"""
