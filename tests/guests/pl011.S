# A PL011 in memory: its identity by 32 bits, 16 KiB by 16 bits as Linux prints them, then echo until q.
	.include "guest.inc"
	.set UART, MMIO + 0x10000
	.set DR, 0x00
	.set FR, 0x18
	.set RXFE, 0x10
	.set TXFF, 0x20
	.set RESULTS, 0x60000

_start:	movl $UART, %ebx
	movl $RESULTS, %edi
	xorl %ecx, %ecx
1:	movl 0xfe0(%rbx,%rcx,4), %eax
	movb %al, (%rdi,%rcx)
	incl %ecx
	cmpl $8, %ecx
	jne 1b
	xorl %esi, %esi
2:	movw FR(%rbx), %ax
	testw $TXFF, %ax
	jnz 2b
	movw %si, DR(%rbx)
	incl %esi
	cmpl $(16 * 1024), %esi
	jne 2b
	mark 'B'
3:	movw FR(%rbx), %ax
	testw $RXFE, %ax
	jnz 3b
	movw DR(%rbx), %ax
	movw %ax, DR(%rbx)
	cmpb $'q', %al
	jne 3b
	mark 'E'
4:	hlt
	jmp 4b
