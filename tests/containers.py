"""Containers as users may write them."""

from xpnn.layers import Sequential


class OneByOne(Sequential):
    """Its backward goes through the layers itself, and expects a cache of each."""

    def backward(self, dout, cache, input_grad=True):
        grads = {}
        for (name, layer), layer_cache in reversed(list(zip(self.layers.items(), cache, strict=True))):
            dout, own = layer.backward(dout, layer_cache)
            grads |= {f"{name}.{key}": grad for key, grad in own.items()}
        return dout, grads
