"""Checks of golden attention files, a module per topic.

A module exports CASES: {prefix of the file name: check}, where check(path, implementation) asserts that ours agrees
with the file; and, where there is more than the reference, IMPLEMENTATIONS: {prefix: names}. SLOW names the
prefixes of full-size models.
"""
