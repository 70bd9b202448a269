# Reads or writes the port at PORT, COUNT times, direction by WRITE (0 or 1); then marks. For benchmarks.
	.include "guest.inc"
	.set PORT, 0x60010
	.set COUNT, 0x60014
	.set WRITE, 0x60018
_start:	movl PORT, %edx
	movl COUNT, %ecx
	cmpl $0, WRITE
	jne 2f
1:	inb %dx, %al
	decl %ecx
	jnz 1b
	jmp 3f
2:	outb %al, %dx
	decl %ecx
	jnz 2b
3:	mark 'E'
4:	hlt
	jmp 4b
