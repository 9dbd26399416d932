"""Forecasters set side by side: equal data, equal processor time or equal samples, equal measures."""
