"""TwinFlow (arXiv 2512.05150) in plain PyTorch: one- and few-step generation with a flow model that is its own fake twin.

Times run over [-1, 1]: t = 1 is noise, t = 0 is data, a negative time is the model's own ("fake") trajectory.
A network is any callable v(x_t, t, r, ...), the average velocity from time t to the target time r.
"""

__version__ = "0.1.0"
