"""The IR kit shared by HIR and MIR. In the order to read it:

graph.py     Graph, Node, Value: a list of nodes in topological order
dim.py       symbolic sizes            dtype.py    element types and storage formats
type.py      dtype and shape           storage.py  what the bytes of a storage format mean
text.py      print and parse           bind.py     symbols from the shapes of input arrays
verify.py    what holds between passes rewrite.py  passes that every level shares
backend.py   what the compiler asks of a backend
"""
