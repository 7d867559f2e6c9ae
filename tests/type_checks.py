"""How jaxtyping checks our functions while tests run (conftest.py): by beartype, to which a whole number is a float too."""

import beartype

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
