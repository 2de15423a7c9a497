"""Which method trains more efficiently: price to a target, area under the curve, equal cost, profiles, budgets.

races     methods on one data set, size and budget: a curve of quality against cost for every seed
ratios    speed-ups with their intervals; the profile over many targets
tables    all of it as tables
picture   curves and profile, for papers
command   `harness compare`
"""
