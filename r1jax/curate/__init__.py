"""What makes data with a model: samples, kept or rejected; pairs, labels; a teacher's logits.

examples ──sample──▶ Answers ──select──▶ rows of JSONL (output)
                        └──────shards──▶ token lines with the teacher's likeliest tokens
"""
