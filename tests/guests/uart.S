# Drives a 16550A at 0x3f8: tells what it reads in loopback and from scratch on the synchronous port, then echoes bytes until 'q'.
	.include "guest.inc"
	.set UART, 0x3f8
	.set FCR, UART + 2
	.set MCR, UART + 4
	.set LSR, UART + 5
	.set SCR, UART + 7

	.macro tell port	# read a byte and write it to the synchronous port
	movw $\port, %dx
	inb %dx, %al
	movw $SYNC, %dx
	outb %al, %dx
	.endm

_start:	put FCR, 0x07
	put MCR, 0x10
	put UART, 'x'
	tell LSR
	tell UART
	tell LSR
	put MCR, 0x0b
	put SCR, 0x33
	put SCR, 0x5a
	tell SCR
1:	movw $LSR, %dx
	inb %dx, %al
	testb $1, %al
	jz 1b
	movw $UART, %dx
	inb %dx, %al
	outb %al, %dx
	cmpb $'q', %al
	jne 1b
	mark 'E'
2:	hlt
	jmp 2b
