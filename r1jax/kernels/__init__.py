"""Operations with more than one implementation: one folder each, the public function in its `__init__`.

`implementation=None` resolves from the platform, once; a name that cannot serve raises NotImplementedError.
"""
