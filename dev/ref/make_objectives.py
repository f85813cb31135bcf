"""Writes test/golden/objectives.h: losses and token gradients of published objectives.

Each objective is written from its paper's formula over padded matrices, in extended precision, and
differentiated by central differences with whatever the paper holds constant frozen. Nothing here
is shared with llmc/rl/objectives.c: advantages, weights and surrogates are formed another way.

    python3 dev/ref/make_objectives.py > test/golden/objectives.h      (needs numpy)
"""
import numpy as np

F = np.longdouble
GROUPS, GROUP, LONGEST = 4, 4, 9
rng = np.random.default_rng(20260101)


def make_batch():
    """Rewards, lengths and log-probabilities; float32 values, so that the C side sees the same."""
    count = GROUPS * GROUP
    reward = rng.choice([0.0, 0.25, 1.0], size=count, p=[0.5, 0.2, 0.3])
    reward[GROUP:2 * GROUP] = 0.1   # a group of equal rewards
    length = rng.integers(1, LONGEST + 1, size=count)
    now = -rng.exponential(1.5, size=(count, LONGEST)).astype(np.float32)
    old = (now - rng.normal(0, 0.35, size=now.shape)).astype(np.float32)
    # every third completion barely moved, so that GSPO's narrow range has both sides too
    for i in range(0, count, 3):
        old[i] = now[i] + rng.normal(0, 5e-4, size=LONGEST).astype(np.float32)
    ref = (now + rng.normal(0, 0.5, size=now.shape)).astype(np.float32)
    now, old, ref = (np.minimum(x, np.float32(-1e-2)) for x in (now, old, ref))
    mask = np.arange(LONGEST)[None, :] < length[:, None]
    return dict(reward=reward.astype(np.float32), length=length, now=now.astype(F),
                old=old.astype(F), ref=ref.astype(F), mask=mask.astype(F))


def advantage_grpo(reward, epsilon="1e-4"):
    """Shao et al. 2024, section 4.1.2: (r - mean) / std within the group."""
    r = reward.astype(F).reshape(GROUPS, GROUP)
    out = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + F(epsilon))
    out[np.ptp(r, axis=1) == 0] = 0
    return out.reshape(-1, 1)


def advantage_leave_one_out(reward):
    """Ahmadian et al. 2024: reward minus the mean of the OTHER completions of the group."""
    r = reward.astype(F).reshape(GROUPS, GROUP)
    out = np.empty_like(r)
    for g in range(GROUPS):
        for i in range(GROUP):
            out[g, i] = r[g, i] - np.delete(r[g], i).mean()
    out[np.ptp(r, axis=1) == 0] = 0
    return out.reshape(-1, 1)


def advantage_dr_grpo(reward):
    """Liu et al. 2025: no division by the standard deviation."""
    r = reward.astype(F).reshape(GROUPS, GROUP)
    out = r - r.mean(1, keepdims=True)
    out[np.ptp(r, axis=1) == 0] = 0
    return out.reshape(-1, 1)


def soft_overlong(reward, length):
    """Yu et al. 2025, equation 13, with a cache of a fifth of the longest."""
    cache = F(LONGEST) / 5
    penalty = np.where(length <= LONGEST - cache, 0,
                       np.where(length <= LONGEST, (LONGEST - cache - length) / cache, -1))
    return reward.astype(F) + penalty


def clipped(ratio, advantage, low, high):
    return np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)


def over_sequences(per_token, mask):
    """1/N sum_i 1/|o_i| sum_t"""
    return ((per_token * mask).sum(1) / mask.sum(1)).mean()


def over_tokens(per_token, mask):
    """1 / sum_i |o_i|  sum_i sum_t"""
    return (per_token * mask).sum() / mask.sum()


def f32(x):
    """A clip bound as the float32 the C table holds."""
    return F(np.float32(x))


def loss_grpo(b, now, frozen, kl=0.0):
    ratio = np.exp(now - b["old"])
    objective = clipped(ratio, advantage_grpo(b["reward"]), f32(0.2), f32(0.2))
    # equation 4: the unbiased KL estimator pi_ref/pi - log(pi_ref/pi) - 1
    estimate = np.exp(b["ref"] - now) - (b["ref"] - now) - 1
    return -over_sequences(objective - f32(kl) * estimate, b["mask"])


def loss_grpo_kl(b, now, frozen):
    return loss_grpo(b, now, frozen, kl=0.04)


def loss_verl_grpo(b, now, frozen):
    """verl 0.9.1 with its defaults: dual clip (Ye et al. 2020, eq. 5) at 3, mean over tokens."""
    ratio = np.exp(now - b["old"])
    advantage = advantage_grpo(b["reward"], "1e-6")
    objective = clipped(ratio, advantage, f32(0.2), f32(0.2))
    objective = np.where(advantage < 0, np.maximum(objective, 3 * advantage), objective)
    return -over_tokens(objective, b["mask"])


def loss_dr_grpo(b, now, frozen):
    ratio = np.exp(now - b["old"])
    objective = clipped(ratio, advantage_dr_grpo(b["reward"]), f32(0.2), f32(0.2))
    return -(objective * b["mask"]).sum() / (GROUPS * GROUP * LONGEST)


def loss_loop(b, now, frozen):
    ratio = np.exp(now - b["old"])
    objective = clipped(ratio, advantage_leave_one_out(b["reward"]), f32(0.0909), f32(0.1))
    return -over_sequences(objective, b["mask"])


def loss_dapo(b, now, frozen):
    ratio = np.exp(now - b["old"])
    advantage = advantage_grpo(soft_overlong(b["reward"], b["length"]))
    return -over_tokens(clipped(ratio, advantage, f32(0.2), f32(0.28)), b["mask"])


def loss_gspo(b, now, frozen):
    """Zheng et al. 2025, the token form (equation 13): s_it = sg[s_i] pi / sg[pi]."""
    s = np.exp(((frozen - b["old"]) * b["mask"]).sum(1) / b["mask"].sum(1))
    ratio = s[:, None] * np.exp(now - frozen)
    objective = clipped(ratio, advantage_grpo(b["reward"]), f32(3e-4), f32(4e-4))
    return -over_sequences(objective, b["mask"])


def loss_cispo(b, now, frozen):
    """MiniMax-M1, equation 4: sg[clip(ratio)] A log pi, over all tokens."""
    ratio = np.clip(np.exp(frozen - b["old"]), 0, 5)
    return -over_tokens(ratio * advantage_grpo(b["reward"]) * now, b["mask"])


def loss_rloo(b, now, frozen):
    return -over_tokens(advantage_leave_one_out(b["reward"]) * now, b["mask"])


def loss_reinforce(b, now, frozen):
    return -over_tokens(b["reward"].astype(F)[:, None] * now, b["mask"])


def loss_ce(b, now, frozen):
    return -over_tokens(now, b["mask"])


LOSSES = [("reinforce", 0, loss_reinforce), ("rloo", 0, loss_rloo), ("loop", 0, loss_loop),
          ("grpo", 0, loss_grpo), ("grpo", 0.04, loss_grpo_kl), ("dr_grpo", 0, loss_dr_grpo),
          ("verl_grpo", 0, loss_verl_grpo),
          ("dapo", 0, loss_dapo), ("gspo", 0, loss_gspo), ("cispo", 0, loss_cispo),
          ("ce", 0, loss_ce)]


def gradient(loss, b, step=F("1e-7")):
    out = np.zeros_like(b["now"])
    for i, t in np.argwhere(b["mask"] > 0):
        up, down = b["now"].copy(), b["now"].copy()
        up[i, t] += step
        down[i, t] -= step
        out[i, t] = (loss(b, up, b["now"]) - loss(b, down, b["now"])) / (2 * step)
    return out


def array(name, kind, values, form):
    text = ", ".join(form % v for v in values)
    lines, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) > 94:
            lines.append(line.rstrip())
            line = ""
        line += word + " "
    lines.append(line.rstrip())
    print("static const %s %s[] = {\n    %s\n};" % (kind, name, "\n    ".join(lines)))


def main():
    b = make_batch()
    picked = b["mask"] > 0
    print("/* Written by dev/ref/make_objectives.py (numpy, extended precision). Not by hand. */")
    print("enum { GOLDEN_GROUP = %d, GOLDEN_COUNT = %d, GOLDEN_LONGEST = %d, GOLDEN_TOKENS = %d };"
          % (GROUP, GROUPS * GROUP, LONGEST, picked.sum()))
    array("golden_reward", "float", b["reward"], "%.9g")
    array("golden_length", "int", b["length"], "%d")
    for name in ("now", "old", "ref"):
        array("golden_" + name, "float", b[name][picked], "%.9g")
    print("static const struct {\n    const char *objective;\n    float kl_coef;\n    double loss;")
    print("    double dlogp[GOLDEN_TOKENS];\n} golden[] = {")
    for name, kl, loss in LOSSES:
        values = ", ".join("%.12g" % v for v in gradient(loss, b)[picked])
        print('    {"%s", %g, %.15g, {' % (name, kl, loss(b, b["now"], b["now"])))
        line = "        "
        for word in values.split(" "):
            if len(line) + len(word) > 96:
                print(line.rstrip())
                line = "        "
            line += word + " "
        print(line.rstrip() + "}},")
    print("};")


if __name__ == "__main__":
    main()
