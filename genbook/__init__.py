__version__ = "0.2.0"

import os as _os

from genbook.edge import install as _install

_install()  # what signatures say is asked where a call enters the package

# The book and its tests are made with this: shapes in signatures are executed.
if _os.environ.get("GENBOOK_TYPECHECK"):
    from genbook.book.shapes import execute_shapes as _execute_shapes

    _execute_shapes()
