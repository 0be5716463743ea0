"""What numpy raises when it reads a damaged or hostile .npy or .npz file."""

import zipfile
from tokenize import TokenError

NUMPY_ERRORS = (
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    OverflowError,
    RecursionError,
    MemoryError,
    KeyError,
    NotImplementedError,
    TokenError,
    zipfile.BadZipFile,
)
