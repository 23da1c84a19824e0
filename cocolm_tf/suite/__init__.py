"""Suites: rows of a table that differ in what their models were pretrained by, as the paper's."""
