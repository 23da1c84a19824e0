"""The models of fine-tuning: Keras classes, each with its preprocessor."""
