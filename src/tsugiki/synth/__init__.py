"""Data that is made: every generator gives samples whose answers are true by construction."""
