(define place (box #f))
(call/cc (lambda (here) (set-box! place here)))
(define (best_so_far numbers)
  ((unbox place) 0))
