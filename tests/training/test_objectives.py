"""RePULSe's weights and gradients against their definition."""

import pytest
import reference_repulse as exact
import torch
from small_repulse import REWARD

from sasa.training import Repulse, objectives
from sasa.training.models import POLICY, PROPOSAL, REFERENCE, Models
from sasa.training.trainer import Trainer

accelerate = pytest.importorskip("accelerate", reason="pip install 'sasa-decoding[train]'")
pytest.importorskip("peft", reason="pip install 'sasa-decoding[train]'")


@pytest.fixture(scope="module")
def tables():
    """Log-probabilities of all sequences under two models, float64 (32768,) each."""
    with torch.no_grad():
        return exact.log_probs(exact.model(0)), exact.log_probs(exact.model(1))


def test_the_bias_of_importance_sampling_is_of_order_one_over_k(tables):
    """Of an expectation under sigma, estimated from K samples of the policy as its own proposal."""
    log_p, _ = tables
    beta, rewards = 0.2, exact.rewards()
    want = float((exact.sigma(log_p, beta).exp() * rewards).sum())
    draw = torch.Generator().manual_seed(0)
    bias = {}
    for k in (4, 8, 16):
        noise = torch.rand(150_000, k, generator=draw, dtype=torch.float64)
        i = torch.searchsorted(log_p.exp().cumsum(0), noise).clamp(max=len(log_p) - 1)
        weights = objectives.sigma_weights(log_p[i], log_p[i], rewards[i], beta)
        bias[k] = float((weights * rewards[i]).sum(1).mean()) - want
    assert bias[4] > 0.03
    assert bias[8] / bias[4] == pytest.approx(0.5, abs=0.1)
    assert bias[16] / bias[8] == pytest.approx(0.5, abs=0.1)


def test_samples_of_sigma_itself_are_all_worth_the_same(tables):
    log_p, _ = tables
    beta = 0.7
    log_q = exact.sigma(log_p, beta)
    i = torch.multinomial(log_q.exp(), 16, generator=torch.Generator().manual_seed(0))[None]
    weights = objectives.sigma_weights(log_p[i], log_q[i], exact.rewards()[i], beta)
    assert float(objectives.effective_sample_size(weights)) == pytest.approx(16)


def test_equal_samples_teach_a_proposal_nothing():
    log_p, log_q = torch.randn(3, 1, 5).expand(3, 4, 5), torch.randn(3, 1, 5).expand(3, 4, 5)
    w = objectives.sigma_weights(log_p.sum(2), log_q.sum(2), torch.full((3, 4), 2.0), 1.3)
    v = objectives.baseline_weights(log_p, log_q)
    torch.testing.assert_close(v, w[..., None].expand_as(v))


def test_the_baseline_looks_at_what_stands_before_a_token():
    """By hand: two samples, the second of which has ended after a token."""
    log_p = torch.tensor([[[-1.0, -2.0, -3.0], [-2.0, 0.0, 0.0]]])
    log_q = torch.tensor([[[-1.5, -1.0, -1.0], [-1.0, 0.0, 0.0]]])
    want = torch.tensor([[[0.0, 0.5, -0.5], [0.0, -1.0, -1.0]]]).softmax(1)
    torch.testing.assert_close(objectives.baseline_weights(log_p, log_q), want)


def test_advantages_leave_one_out():
    values = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(
        objectives.advantages(values), torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5]])
    )


def test_the_return_measures_the_distance_to_the_best_policy(tables):
    """return = (log Z - KL(p || p*)) / beta_kl, with p* proportional to p0 * exp(beta_kl * r) (Zhao et al. 2025)."""
    log_p0, log_p = tables
    beta_kl = 1.7
    unnormalised = log_p0 + beta_kl * exact.rewards()
    log_z = unnormalised.logsumexp(0)
    returns = objectives.returns(exact.rewards(), log_p, log_p0, beta_kl)
    want = (log_z - exact.kl(log_p, unnormalised - log_z)) / beta_kl
    torch.testing.assert_close((log_p.exp() * returns).sum(), want)
    torch.testing.assert_close(
        (log_p.exp() * returns).sum(), exact.mean_return(log_p, log_p0, beta_kl)
    )


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("rloo", 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("repulse", 0),
                ("repulse", 4),
                ("rloo-transformed", 0),
                ("p-proposal", 4),
            )
        ),
    ],
)
def test_a_step_follows_the_gradients_of_both_losses(method, lora):
    """From 25,000 samples, against the enumerated losses: of p the return's and the push against sigma, of q KL(sigma || q)."""
    settings = Repulse(
        method, alpha=0.5, beta=0.2, beta_kl=2.0, samples=25_000, prompts_per_step=1, steps=1, lora=lora,
        max_new_tokens=exact.LENGTH, max_norm=1e9, batch_size=10**6,
    )  # fmt: skip
    tokenizer = exact.tokenizer()
    models = Models(exact.model(), lora, proposal=method == "repulse", seed=0)
    draw = torch.Generator().manual_seed(3)
    learning = [POLICY, PROPOSAL] if method == "repulse" else [POLICY]
    for who in learning:  # all three apart from each other
        for weight in models.weights(who).values():
            weight.data.add_(
                0.1 * weight.data.std().clamp(min=0.05) * torch.randn(weight.shape, generator=draw)
            )

    def enumerated(who):
        with models.use(who) as model:
            whole = exact.doubled(model)
        own = models.weights(who) if who in learning else ()
        return exact.log_probs(whole), [
            weight for name, weight in whole.named_parameters() if name in own
        ]

    log_p, weights = enumerated(POLICY)
    log_p0 = enumerated(REFERENCE)[0].detach()
    sigma = exact.sigma(log_p, settings.beta).detach()
    loss = -exact.mean_return(log_p, log_p0, settings.beta_kl)
    if method == "rloo-transformed":
        loss = (
            loss + settings.alpha * (log_p.exp() * (-settings.beta * exact.rewards()).exp()).sum()
        )
    elif method != "rloo":
        loss = loss + settings.alpha * (sigma.exp() * log_p).sum()
    want = {POLICY: torch.autograd.grad(loss, weights)}
    if method == "repulse":
        log_q, weights = enumerated(PROPOSAL)
        want[PROPOSAL] = torch.autograd.grad(exact.kl(sigma, log_q), weights)
    ids = tokenizer(exact.PROMPT).input_ids
    trainer = Trainer(
        models, tokenizer, [exact.PROMPT], [ids], REWARD, settings, accelerate.Accelerator(cpu=True)
    )
    entry = trainer.step(0)
    for who, gradient in want.items():
        found = torch.cat(
            [weight.grad.flatten() for weight in models.weights(who).values()]
        ).double()
        gradient = torch.cat([g.flatten() for g in gradient])
        assert float((found - gradient).norm() / gradient.norm()) < 0.25
        assert float(torch.cosine_similarity(found, gradient, 0)) > 0.97
    p = log_p.detach()
    assert entry["return"] == pytest.approx(float(exact.mean_return(p, log_p0, 2.0)), abs=0.05)
    assert entry["kl"] == pytest.approx(float(exact.kl(p, log_p0)), abs=0.05)
    assert entry["below"] == pytest.approx(float(p.exp()[exact.rewards() < 0].sum()), abs=0.01)
