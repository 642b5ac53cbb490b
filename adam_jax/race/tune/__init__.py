"""Finding a good learning rate, and how far off it one may go, in much less than a whole grid.

Every candidate trains for a part of the budget, the better half goes on with its state, and so on
until a handful have had all of it: successive halving. Then more rates near the best one train for
the whole budget, and tell how wide the range of good ones is.

References:
  Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
  Optimization", https://arxiv.org/abs/1502.07943; Li et al. 2018, "Hyperband: A Novel Bandit-Based
  Approach to Hyperparameter Optimization", https://arxiv.org/abs/1603.06560.
"""
