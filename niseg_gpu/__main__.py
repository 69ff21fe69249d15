from niseg_gpu.cli import main

main()
