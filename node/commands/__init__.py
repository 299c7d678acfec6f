"""One file a command: it reads its arguments, calls one function of the node and shows what came back."""
