# Does to its own processor what the byte says that it reads first: see tests/kvm/x86_64/test_itself.py. "E": it has got behind that.
	.include "guest.inc"
	.set LAPIC, 0xfee00000
	.set ICR, 0x300
	.set SMM_CODE, 0x38000		# SMBASE of reset, and its entry
	.set IA32_APIC_BASE, 0x1b
_start:	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)		# software-enable
	movw $SYNC, %dx
	inb %dx, %al
	cmpb $'I', %al
	je init
	cmpb $'S', %al
	je smi
	cmpb $'H', %al
	je hypercalls
	cmpb $'O', %al
	je apic_off
	cmpb $'M', %al
	je apic_moved
	cmpb $'N', %al
	je nmi
done:	mark 'E'
1:	pause
	jmp 1b

# No other processor will wake it again.
init:	movl $0, ICR + 0x10(%rbx)
	movl $0x44500, ICR(%rbx)	# INIT, assert, to itself
	jmp done

smi:	leaq smm(%rip), %rsi
	movl $SMM_CODE, %edi
	movl $(smm_end - smm), %ecx
	rep movsb
	movl $0x40200, ICR(%rbx)	# SMI, to itself
	jmp done

# As many as there are, and more, with arguments that are addresses of nothing.
hypercalls:
	xorl %r12d, %r12d
1:	movl %r12d, %eax
	movq $-1, %rbx
	movq $-1, %rcx
	movl $0x7ffff000, %edx
	movq $-1, %rsi
	call call_monitor
	incl %r12d
	cmpl $40, %r12d
	jne 1b
	jmp done

call_monitor:
	vmmcall
	ret

apic_off:
	movl $IA32_APIC_BASE, %ecx
	rdmsr
	andl $~0x800, %eax
	wrmsr
	jmp done

# On memory, on nothing, and back.
apic_moved:
	movl $IA32_APIC_BASE, %ecx
	movl $0, %edx
	movl $0x00100900, %eax
	wrmsr
	movl %eax, 0x100020
	movl $0xc0000900, %eax
	wrmsr
	movl $0xc0000000, %edi
	movl 0x20(%rdi), %eax
	movl $0xfee00900, %eax
	wrmsr
	jmp done

# There is no table that says who takes it.
nmi:	movl $0x40400, ICR(%rbx)
	jmp done

	.code16
smm:	movb $'M', %al
	movw $SYNC, %dx
	outb %al, %dx
	rsm
smm_end:
