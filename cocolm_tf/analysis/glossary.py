"""The metrics by name: their titles, formats and explanations."""

from cocolm_tf.analysis.detection import FREQUENCIES
from cocolm_tf.analysis.sentence_space import COMPONENTS

Description = tuple[str, str, str]
_PERCENT, _NUMBER = "{:.1%}", "{:.3f}"
# Of training.
METRICS: dict[str, Description] = {
    "loss": ("Total loss", _NUMBER, "The weighted sum of the losses: what training minimizes."),
    "mlm_loss": (
        "Masked LM loss",
        _NUMBER,
        "The auxiliary model's cross entropy at the masked tokens, in nats. A uniform guess has "
        "log(vocabulary size).",
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
        "Binary cross entropy of telling original tokens from replaced ones, in nats. It may rise "
        "while the auxiliary model learns to fool the main one.",
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
# Of the optimizer: shown as curves alone.
STEP_METRICS: dict[str, Description] = {
    "learning_rate": ("Learning rate", "{:.3g}", "The optimizer's step size, by its schedule."),
    "gradient_norm": ("Gradient norm", "{:.3g}", "The global norm, before clipping."),
}
# Of a space of sentence vectors.
SPACE_METRICS: dict[str, Description] = {
    "similar_cosine": (
        "Cosine of similar pairs",
        _NUMBER,
        "The mean. On STS-B the paper has 0.925 with contrastive learning, 0.863 without.",
    ),
    "random_cosine": ("Cosine of random pairs", _NUMBER, "The mean: near 1, all is in a cone."),
    "alignment": (
        "Alignment",
        _NUMBER,
        "The mean squared distance of similar pairs: the lower, the better aligned.",
    ),
    "uniformity": (
        "Uniformity",
        _NUMBER,
        "The spread of the texts over the sphere: the lower, the more uniform; -4 is orthogonal.",
    ),
    **{
        f"variance_{count}": (
            f"Variance in {count} component{'s' if count > 1 else ''}",
            _PERCENT,
            "The share of the texts' variance in the first principal components: anisotropy.",
        )
        for count in COMPONENTS
    },
    "spearman": (
        "Spearman's correlation",
        _NUMBER,
        "Of the cosines of all pairs with the scores that people gave them.",
    ),
    "spearman_whitened": (
        "Spearman's, whitened",
        _NUMBER,
        "The same once the vectors are whitened.",
    ),
}
# Of detection.
DETECTION_METRICS: dict[str, Description] = {
    "replaced_share": ("Replaced", _PERCENT, "The share of the tokens that are not the original."),
    "precision": ("Precision", _PERCENT, "How many of the flagged tokens were replaced."),
    "recall": ("Recall", _PERCENT, "How many of the replaced tokens are flagged."),
    "f1": ("F1", _NUMBER, "The harmonic mean of the two."),
    "average_precision": (
        "Average precision",
        _NUMBER,
        "Over all thresholds; chance has the share of replaced tokens.",
    ),
    "calibration_error": (
        "Calibration error",
        _NUMBER,
        "The mean gap between the probability that is said and the share that is so.",
    ),
    "corrected_at_1": (
        "Corrected",
        _PERCENT,
        "How many replaced tokens' originals are the LM head's best guess.",
    ),
    "corrected_at_5": ("Corrected, of five", _PERCENT, "How many are among its best five."),
}
# By how frequent the original token is, in detection's figure: the title of each class.
FREQUENCY_TITLES = dict(
    zip(FREQUENCIES, ("100 most\nfrequent", "next 900", "all others"), strict=True)
)
