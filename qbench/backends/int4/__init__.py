"""The backend `int4`: loads a model tensor by tensor into the weights of `qbench.int4`. Begin with `load`."""
