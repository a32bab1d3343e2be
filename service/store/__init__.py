"""Datasets and jobs in SQL: the tables, their schema through time, and nothing that decides."""
