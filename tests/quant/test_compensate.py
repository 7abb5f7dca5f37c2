"""Layers fitted to what they see: against least squares written out, and the error of whole networks."""

import numpy as np
import torch

from terrazzo.arch.schemes import Scheme
from terrazzo.quant import quantizer
from terrazzo.quant.calibrate import preprocess
from terrazzo.quant.compensate import _VALUE_BYTES, Follower, _Sums, fitted
from terrazzo.sim import reference


def halves(x, t):
    found = [_Sums(), _Sums()]
    for part, a, b in zip(found, np.array_split(x, 2), np.array_split(t, 2), strict=True):
        part.add(torch.tensor(a[None]).float(), torch.tensor(b[None]).float(), torch.ones(len(a)))
    return found


def test_noisy_inputs_are_made_up_for():
    rng = np.random.default_rng(0)
    real, weight = rng.normal(size=(4000, 1)) @ rng.normal(size=(1, 6)) + 1.5, rng.normal(size=(3, 6))
    seen = real + rng.normal(size=real.shape)
    wanted = real @ weight.T
    found = fitted(weight[None], halves(seen, wanted))[0]

    def error(w):
        difference = (seen - seen.mean(0)) @ w.T - (wanted - wanted.mean(0))
        return (difference**2).sum()

    exact = np.linalg.lstsq(seen - seen.mean(0), wanted - wanted.mean(0), rcond=None)[0].T
    assert error(exact) < 0.5 * error(weight)
    assert error(found) < 1.02 * error(exact)


def test_a_sample_may_count_several_times():
    rng = np.random.default_rng(2)
    x, t = (torch.from_numpy(rng.normal(size=(1, 50, n))).float() for n in (4, 3))
    counts = torch.from_numpy(rng.integers(0, 4, 50))
    weighted, repeated = _Sums(), _Sums()
    weighted.add(x, t, counts.float())
    x, t = (v.repeat_interleave(counts, dim=1) for v in (x, t))
    repeated.add(x, t, torch.ones(int(counts.sum())))
    for key, value in vars(repeated).items():
        np.testing.assert_allclose(getattr(weighted, key), value, rtol=1e-5, atol=1e-4)


def test_chance_is_not_fitted():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(40, 30)), rng.normal(size=(5, 30))
    wanted = x @ weight.T + rng.normal(size=(40, 5))
    found = fitted(weight[None], halves(x, wanted))[0]
    assert np.linalg.norm(found - weight) < 0.3 * np.linalg.norm(weight)


def test_coarse_networks_come_closer(
    gallery_cnn, gallery_vit, plain_preprocessing, raw_images, unfitted, monkeypatch
):
    for gallery, share in ((gallery_cnn, 0.97), (gallery_vit, 0.85)):
        noise = np.zeros(2)
        for model in map(gallery, range(3)):
            preprocessing = plain_preprocessing(model.input_shape[-1])
            calibration, others = np.split(raw_images(160, model.input_shape), [128])
            real = model.run(preprocess(others, preprocessing)).numpy().reshape(len(others), -1)
            for i, follows in enumerate((True, False)):
                with monkeypatch.context() as patch:
                    if not follows:
                        unfitted(patch)
                    mixture = {Scheme.FIXED8: 1, Scheme.FIXED4: 3}
                    graph, _ = quantizer.quantize(
                        model, calibration, preprocessing, mixture=mixture, activation_bits=4
                    )
                tensor = graph.tensor(graph.output)
                codes = reference.run(graph, reference.quantize_batch(graph, others)).astype(float)
                got = ((codes - tensor.zero_point) * tensor.scale).reshape(real.shape)
                noise[i] += ((got - real) ** 2).sum() / real.var()
        assert noise[0] < share * noise[1]


def test_no_more_is_held_than_was_counted(gallery_cnn, plain_preprocessing, raw_images, monkeypatch):
    held = []

    def watched(method):
        def call(self, unit):
            result = method(self, unit)
            lists = [*self.real.values(), *self.codes.values(), self.sums]
            size = sum(x.numel() * x.element_size() for values in lists for x in values)
            held.append(size / (24 * _VALUE_BYTES * self._widest()))
            return result

        return call

    for name in ("wanted", "advance"):
        monkeypatch.setattr(Follower, name, watched(getattr(Follower, name)))
    model = gallery_cnn(0)
    mixture, images = {Scheme.FIXED8: 1}, raw_images(24, model.input_shape)
    preprocessing = plain_preprocessing(model.input_shape[-1])
    quantizer.quantize(model, images, preprocessing, mixture=mixture, activation_bits=5)
    assert 0.5 < max(held) <= 1
