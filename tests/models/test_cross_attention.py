"""Recorded maps against diffusers' own explicit softmax; the model is given back as it was."""

from __future__ import annotations

import torch

from mcpl.models.cross_attention import attention_columns, cross_attention_layers, record


def _forward(tiny, rows=3):
    torch.manual_seed(1)
    noisy = torch.randn(rows, *tiny.facts.latent_shape, dtype=torch.float64)
    hidden = torch.randn(rows, tiny.vocabulary.length, tiny.facts.width, dtype=torch.float64)
    return lambda: tiny._unet(noisy, torch.tensor([10, 500, 990][:rows]), encoder_hidden_states=hidden).sample


def test_columns_equal_explicit_softmax():
    torch.manual_seed(0)
    query, key = torch.randn(2, 9, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[1, 3], [4, 0]])
    ours = attention_columns(query, key, positions, heads=2, scale=0.5)
    q, k = (x.view(2, -1, 2, 4).transpose(1, 2) for x in (query, key))
    full = (q @ k.transpose(-1, -2) * 0.5).softmax(dim=-1).mean(dim=1)
    expected = torch.stack([full[b][:, positions[b]] for b in range(2)])
    assert torch.allclose(ours, expected, atol=1e-12)


def test_maps_equal_the_models_own_probabilities(tiny):
    """Independent reference: diffusers' get_attention_scores on the same queries and keys."""
    forward, size = _forward(tiny), tiny.facts.attention_size
    seen, handles = {}, []
    for name, layer in cross_attention_layers(tiny._unet).items():

        def keep(module, args, kwargs, output, name=name):
            states, text = args[0], kwargs["encoder_hidden_states"]
            if states.shape[1] == size**2:
                query = module.head_to_batch_dim(module.to_q(states))
                key = module.head_to_batch_dim(module.to_k(text))
                scores = module.get_attention_scores(query, key).unflatten(0, (-1, module.heads)).mean(dim=1)
                seen[name] = scores

        handles.append(layer.register_forward_hook(keep, with_kwargs=True))
    plain = forward()
    for handle in handles:
        handle.remove()
    positions = torch.tensor([[1, 5, 9]] * 3)
    with record(tiny._unet, positions, size) as recording:
        recorded = forward()
    assert torch.equal(plain, recorded), "looking changes nothing"
    expected = torch.stack([s[..., [1, 5, 9]] for s in seen.values()]).mean(dim=0)
    assert torch.allclose(recording.maps().flatten(2).transpose(1, 2), expected, atol=1e-12)
    assert set(recording.layers) == set(seen) and recording.layers


def test_columns_of_all_tokens_sum_to_one(tiny):
    length = tiny.vocabulary.length
    with record(tiny._unet, torch.arange(length).expand(3, -1), tiny.facts.attention_size) as recording:
        _forward(tiny)()
    assert torch.allclose(recording.maps().sum(dim=1), torch.ones((), dtype=torch.float64), atol=1e-12)


def test_hooks_are_gone_even_after_an_error(tiny):
    try:
        with record(tiny._unet, torch.zeros(1, 1, dtype=torch.long), tiny.facts.attention_size):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not any(m._forward_hooks for m in tiny._unet.modules())


def test_maps_carry_a_gradient(tiny):
    noisy = torch.randn(1, *tiny.facts.latent_shape, dtype=torch.float64)
    hidden = torch.randn(1, tiny.vocabulary.length, tiny.facts.width, dtype=torch.float64, requires_grad=True)
    with record(tiny._unet, torch.tensor([[2]]), tiny.facts.attention_size) as recording:
        tiny._unet(noisy, 500, encoder_hidden_states=hidden)
    (gradient,) = torch.autograd.grad(recording.maps().square().sum(), hidden)
    assert gradient.abs().sum() > 0


def test_the_recorded_size_is_one_that_occurs():
    """SD 2.x at 768 has levels 96, 48, 24, 12: the one nearest to 16 is read."""
    from types import SimpleNamespace

    from mcpl.models.stable_diffusion import _attended_sides

    blocks = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    for side, nearest in ((64, 16), (96, 24), (16, 16), (40, 20)):
        sides = _attended_sides(SimpleNamespace(sample_size=side, down_block_types=blocks))
        assert min(sides, key=lambda size: abs(size - 16)) == nearest


def test_gradients_through_columns_equal_those_through_explicit_softmax():
    """A loss on the columns, in float64, against the softmax written out."""
    torch.manual_seed(0)
    query = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    positions, wanted = torch.tensor([[1, 3, 3], [4, 0, 2]]), torch.rand(2, 9, 3, dtype=torch.float64)

    def loss(columns):
        return (columns / columns.amax(dim=1, keepdim=True) - wanted).square().sum()

    q, k = (x.view(2, -1, 2, 4).transpose(1, 2) for x in (query, key))
    powers = (q @ k.transpose(-1, -2) * 0.5).exp()
    full = (powers / powers.sum(dim=-1, keepdim=True)).mean(dim=1)
    written_out = torch.autograd.grad(loss(torch.stack([full[b][:, positions[b]] for b in range(2)])), (query, key))
    ours = torch.autograd.grad(loss(attention_columns(query, key, positions, heads=2, scale=0.5)), (query, key))
    for own, expected in zip(ours, written_out, strict=True):
        assert (own - expected).abs().max() < 1e-12 and expected.abs().max() > 0.01
