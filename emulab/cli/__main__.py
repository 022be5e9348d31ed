from emulab.cli import main

main()
