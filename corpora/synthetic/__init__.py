"""Contracts that the project writes itself, in CUAD's format, by drafting house and year (see README.md)."""

from corpora.synthetic.house import CATEGORIES, house_names, load_house
from corpora.synthetic.writer import write_contract, write_corpus

__all__ = ["CATEGORIES", "house_names", "load_house", "write_contract", "write_corpus"]
