"""Operations with more than one implementation: one folder each, its `__init__` is public.

`implementation=None` resolves from the platform, once; a name that cannot serve raises
NotImplementedError.
"""
