"""What the measures that training logs mean."""

_PERCENT, _NUMBER = "{:.1%}", "{:.3f}"
# The measures of training: what to call each, how to show its value, what it means.
MEANINGS = {
    "loss": ("Total loss", _NUMBER, "The weighted sum of the losses: what training minimizes."),
    "mlm_loss": (
        "Masked LM loss",
        _NUMBER,
        "The auxiliary model's cross entropy at the masked tokens, in nats.",
    ),
    "mlm_accuracy": (
        "Masked LM accuracy",
        _PERCENT,
        "How often the auxiliary model's best guess is the masked token.",
    ),
    "replacement_rate": (
        "Replacement rate",
        _PERCENT,
        "The share of the tokens that the main model reads and that are not the original ones.",
    ),
    "copy_loss": (
        "Copy loss",
        _NUMBER,
        "Binary cross entropy of telling original tokens from replaced ones, in nats.",
    ),
    "copy_accuracy_replaced": (
        "Copy accuracy, replaced",
        _PERCENT,
        "How many of the replaced tokens the main model flags.",
    ),
    "copy_accuracy_original": (
        "Copy accuracy, original",
        _PERCENT,
        "How many of the original tokens the main model does not flag.",
    ),
    "lm_loss": (
        "Corrective LM loss",
        _NUMBER,
        "The main model's cross entropy of the original tokens where some were masked, in nats.",
    ),
    "lm_accuracy_replaced": (
        "Corrective LM accuracy, replaced",
        _PERCENT,
        "How often it restores a replaced token.",
    ),
    "lm_accuracy_original": (
        "Corrective LM accuracy, original",
        _PERCENT,
        "How often it leaves a token alone that the auxiliary model had put back.",
    ),
    "scl_loss": (
        "Contrastive loss",
        _NUMBER,
        "Cross entropy of finding a sequence's other view in the batch, in nats.",
    ),
    "positive_cosine": (
        "Cosine of positive pairs",
        _NUMBER,
        "How near the two views of one text are: alignment.",
    ),
    "negative_cosine": (
        "Cosine of negative pairs",
        _NUMBER,
        "How near views of different texts are: the lower, the more uniform.",
    ),
}
