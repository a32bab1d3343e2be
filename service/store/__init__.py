"""Datasets, train jobs and comparisons in SQL: the tables, their schema through time, and nothing that decides."""
