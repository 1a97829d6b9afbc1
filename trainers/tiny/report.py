"""The demo's results for people: a Markdown page, which is also what is printed, and a plot."""

from pathlib import Path

from trainers.tiny.results import BEST_OF, POLICIES, Results, show


def markdown(results: Results) -> str:
    """The table of gold rewards, the claims with their evidence, and what the run cost."""
    head = "| policy | " + " | ".join(f"best_of {n}" for n in BEST_OF) + " | KL from sft |"
    rows = [
        f"| {policy} | "
        + " | ".join(show(results.gold[policy, n]) for n in BEST_OF)
        + (f" | {results.kl[policy].mean:.1f} nats |" if policy in results.kl else " | |")
        for policy in POLICIES
    ]
    claims = [f"- {'yes' if c.holds else '**NO**'}: {c.text}: {c.evidence}" for c in results.claims()]
    extra = results.gains["dpo best_of 16-1"]
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in results.seconds.items())
    return "\n".join(
        [
            f"Mean gold reward on {results.prompts} held-out prompts, sampled through the gateway "
            "[95 % interval]:",
            "",
            head,
            "|---" * (len(BEST_OF) + 2) + "|",
            *rows,
            "",
            "KL is per answer, at best_of 1. Gains are paired by prompt, with 95 % intervals. Does it hold?",
            "",
            *claims,
            f"- not claimed: best_of 16 over best_of 1 on top of DPO: {show(extra)}",
            "",
            f"Seconds: {seconds}; in all {sum(results.seconds.values()):.0f}. "
            f"Peak memory: {results.peak_memory_bytes / 2**30:.1f} GiB.",
            "",
        ]
    )


def plot(results: Results, path: Path) -> None:
    """Gold reward against best_of, a line for each policy, with 95 % intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for policy in POLICIES:
        cells = [results.gold[policy, n] for n in BEST_OF]
        errors = [[c.mean - c.ci95[0] for c in cells], [c.ci95[1] - c.mean for c in cells]]
        axes.errorbar(BEST_OF, [c.mean for c in cells], yerr=errors, marker="o", capsize=3, label=policy)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BEST_OF, [str(n) for n in BEST_OF])
    axes.set_xlabel("best_of (candidates an answer)")
    axes.set_ylabel("mean gold reward, 95 % interval")
    axes.set_title(f"{results.prompts} held-out prompts through the gateway")
    axes.grid(alpha=0.3)
    axes.legend()
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=130)
    plt.close(figure)
    part.replace(path)
