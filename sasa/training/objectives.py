"""RePULSe's two losses as what they are: log-likelihoods of samples, each weighted by a constant.

Zhao, Li, Brekelmans and Grosse (2025), "Reducing the Probability of Undesirable Outputs in Language
Models Using Probabilistic Inference" (RePULSe, arXiv 2510.21184). For each of P prompts there are K
samples of the policy p and K of a proposal q. Then

    loss of p  =  sum over its own samples of  -A_i / K * log p(s_i)
                  +  sum over q's samples of  alpha * w_i * log p(s_i)
    loss of q  =  sum over q's samples and their tokens of  (v_it - w_i) * log q(s_t | s_1:t-1)

where A are leave-one-out advantages, w estimate the distribution sigma of bad outputs and v are a
baseline that has no mean. A gradient goes through the log-probabilities only. A log-probability of
a sequence is the sum over its tokens, its EOS among them. (The authors' code takes means over
tokens and divides the push by K, their paper does not: an alpha here is K times smaller than one
there.)

These functions work on tensors and know nothing about models.
"""

from __future__ import annotations

from torch import Tensor


def returns(rewards: Tensor, log_p: Tensor, log_p0: Tensor, beta_kl: float) -> Tensor:
    """r - (log p - log p0) / beta_kl, the mean of which the policy maximises; all of one shape.

    Its optimum is p* proportional to p0 * exp(beta_kl * r), and the mean of the policy's is (log Z
    - KL(p || p*)) / beta_kl.
    """
    return rewards - (log_p - log_p0) / beta_kl


def transformed(rewards: Tensor, alpha: float, beta: float) -> Tensor:
    """r - alpha * exp(-beta * r): rewards that punish the worst outputs beyond proportion.

    They are the paper's other baseline.
    """
    return rewards - alpha * (-beta * rewards).exp()


def advantages(values: Tensor) -> Tensor:
    """Leave-one-out advantages (RLOO, Kool et al. 2019).

    Each value (P, K) less the mean of the same prompt's others.
    """
    count = values.shape[1]
    return (values - values.mean(1, keepdim=True)) * count / (count - 1)


def sigma_weights(log_p: Tensor, log_q: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Weights (P, K) of samples of q that estimate sigma, proportional to p * exp(-beta * r).

    They sum to 1 for each prompt.

    Self-normalised importance sampling; its bias is of order 1 / K. All arguments are (P, K).
    """
    return (log_p - beta * rewards - log_q).softmax(1)


def baseline_weights(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The weights v (P, K, T) of contrastive twist learning's second term, of sum 1 at each token.

    v_it weighs the text before token t by p / q. Tokens of q drawn behind given texts have a mean
    score of 0, whatever weighs the texts: this term changes no expectation and takes out noise. It
    takes out all where all samples are the same.

    Args:
        log_p, log_q: of each token, (P, K, T), 0 behind a sample's end.
    """
    ratio = log_p - log_q
    return (ratio.cumsum(2) - ratio).softmax(1)


def effective_sample_size(weights: Tensor) -> Tensor:
    """The number of equally weighted samples that weights (..., K) are worth (Kong 1992).

    It is 1 / the sum of squares of weights that sum to 1.
    """
    return 1 / weights.square().sum(-1)
