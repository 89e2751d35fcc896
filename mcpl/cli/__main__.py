"""python -m mcpl.cli"""

from mcpl.cli import main

main()
