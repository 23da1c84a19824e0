"""Tasks for pretrained encoders: models that `fit()` on raw text, and runs that measure them."""
